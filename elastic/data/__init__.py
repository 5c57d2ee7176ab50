"""From files of images to the batches of a training step; see `pipeline` for the flow."""
