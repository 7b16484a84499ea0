"""zhou2018: efficient image evidence analysis, and the prediction difference analysis that it speeds up."""
