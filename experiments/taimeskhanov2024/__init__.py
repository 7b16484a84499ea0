"""Taimeskhanov, Sicre, Garreau 2024: CAM-Based Methods Can See Through Walls."""
