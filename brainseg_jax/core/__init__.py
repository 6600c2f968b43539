"""What every room stands on, and nothing of it knows of brains: errors, files, paths of parameters, the process itself."""
