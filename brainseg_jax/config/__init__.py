"""What an experiment is: its keys, and the recipes that configs share."""
