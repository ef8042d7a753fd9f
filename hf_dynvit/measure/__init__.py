"""What a model costs on this machine: time, memory, accuracy, and where that was measured."""
