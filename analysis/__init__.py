"""From run folders to tables: nothing here is typed in by hand, nothing is read from a tracker."""
