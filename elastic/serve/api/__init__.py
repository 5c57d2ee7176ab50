"""What clients speak: gRPC, OpenAI's HTTP and the standard health check, with one service behind them."""
