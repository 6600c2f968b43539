"""The commands, a file each: their flags, what they print, and their exit codes. Nothing imports them but their entry points."""
