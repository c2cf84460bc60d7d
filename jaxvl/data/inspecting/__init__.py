"""What is inside data that is not known yet: `python -m jaxvl.data.inspect PATH`.

recognise   which source reads a path, by names of files and their first bytes
survey      figures of a sample of records, drawn by seed
texts       figures of texts
images      figures of pictures
sheet       pictures with their texts, as one HTML file
show        all of it as tables
paste       the data of a config file that reads it
"""
