"""What a run would need and cost, by arithmetic: parameters, memory, time. It opens nothing."""
