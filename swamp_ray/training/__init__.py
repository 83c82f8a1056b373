"""Networks, data, tasks and the training of one particle on one device."""
