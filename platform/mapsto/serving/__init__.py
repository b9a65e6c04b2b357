"""What stands between a saved model and its users: runtimes, the HTTP protocol, the Serve application, the client."""
