"""The machine: devices, memory, processes, files, the console."""
