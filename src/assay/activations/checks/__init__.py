"""What each measurement is judged by: its dataset in, coded verdicts out."""
