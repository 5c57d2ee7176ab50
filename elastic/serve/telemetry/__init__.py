"""What a server tells of itself: metrics, a log of requests, traces, and the screen of `elastic top`."""
