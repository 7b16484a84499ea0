"""Nie, Zhang, Patel 2018: A Theoretical Explanation for Perplexing Behaviors of Backpropagation-based Visualizations."""
