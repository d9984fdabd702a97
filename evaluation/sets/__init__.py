"""What is measured on: pictures and what is true of them, from folders, archives and data sets."""
