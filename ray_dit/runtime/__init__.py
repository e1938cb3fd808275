"""What runs work on Ray; knows no stage: a stage hands over what to do."""
