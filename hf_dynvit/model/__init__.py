"""The model that travels to the Hub: configuration, layers in both layouts, gates, cost."""
