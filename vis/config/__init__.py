"""Turn command-line words into values: compose configs, check them, build objects from them."""
