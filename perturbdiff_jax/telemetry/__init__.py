"""What a run says about itself: progress, log, speed against the hardware's peak, traces, where it ran."""
