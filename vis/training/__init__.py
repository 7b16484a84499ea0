"""What learns: trainings, stand-ins, and methods that are fitted."""
