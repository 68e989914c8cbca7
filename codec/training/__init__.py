"""What a training run is made of beside the codec and its losses; ``recipes/train.py`` is the run itself."""
