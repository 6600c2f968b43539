"""From a config to a trained network: the loop, the step it compiles, the optimizer, validation, and what a run writes down."""
