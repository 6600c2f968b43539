"""The commands, one file each: flags, printed text and exit codes. Only entry points import them."""
