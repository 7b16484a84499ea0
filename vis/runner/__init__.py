"""The base class of experiments, and the code that executes a run of one."""
