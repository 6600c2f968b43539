"""The base of all other packages, independent of MRI: errors, files, parameter paths, the process itself."""
