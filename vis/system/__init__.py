"""Control devices, memory, processes, files and the console."""
