"""Pictures and tables of what the lab found. Computes nothing that an experiment would report."""
