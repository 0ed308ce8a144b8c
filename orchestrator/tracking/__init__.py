"""What a run says of itself: metrics, samples, W&B, and lines on the screen."""
