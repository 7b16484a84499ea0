def aggregate(folder):
    pass
