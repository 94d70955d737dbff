"""Everything around the model: configuration, data, training and testing tools."""
