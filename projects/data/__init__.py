"""Datasets and what is made of them: the Shapes dataset, a user's own data, dataset mappers and label maps."""
