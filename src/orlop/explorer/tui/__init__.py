"""`orlop explore`: an image or a prepared root in the terminal.  The only room that knows textual.

Whatever comes from an image is hostile here: it reaches the screen through `text` alone, and never as markup.
"""
