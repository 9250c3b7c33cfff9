"""What mtbert.py stands on. Nobody needs to open this folder in order to change the model."""
