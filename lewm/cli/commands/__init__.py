"""One command per file: `main(words)` parses what follows the command's name, calls the library,
and shows what came out."""
