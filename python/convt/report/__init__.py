"""`convt report`: results files as one HTML page that needs nothing else, and as pictures.

Reads what `convt bench --out` wrote, the oldest files too. Nothing here measures, and nothing needs a network.
"""
