"""Reading network files without running them: a pickle reader of our own, and key maps of the published families."""
