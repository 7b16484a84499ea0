"""When Explanations Lie: Why Many Modified BP Attributions Fail (Sixt, Granz and Landgraf 2020, arXiv 1912.09818)."""
