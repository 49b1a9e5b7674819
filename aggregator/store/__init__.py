"""What must outlive a crash: the objects, the journal that says what they mean, and the home that holds both."""
