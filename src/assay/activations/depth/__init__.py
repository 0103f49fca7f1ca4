"""What the measurements of depth share: wirings, operations on layers, predictions."""
