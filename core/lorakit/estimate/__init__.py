"""What a plan will take: memory, time, money and disk, as formulas over the model's size and a device's rates."""
