"""A story in English, which no model here was trained on: about 400 tokens of `tiny`."""

TEXT = """\
The village lay in a hollow of the hills, a mile or more from the sea, and for as long as anyone could remember the
people who lived there had looked to the church tower to tell them the hour. One evening in the autumn, when the lamps
were lit and the doors were shut against the wind, the old clock stopped. Nobody noticed it until the morning. Then the
baker, who was always the first to rise, came out upon his step and looked up, as he had done every day for thirty
years, and saw that the hands were standing at a quarter past nine. He rubbed his eyes, and called to his wife; and
she, having looked in her turn, ran across the road to tell the schoolmaster, who was a man of learning, and was said to
have been in London. "It is very simple," said the schoolmaster. "The clock has stopped." This was felt to be true, and
for some minutes no one could think of anything to add to it. "But who is to mend it?" asked the baker at last. There
had been a man once, in the next village, who understood such things, but he had been dead these ten years, and his son
had gone away to be a soldier and had never been heard of again. They stood there in the cold, looking upwards, until
the doctor came by on his grey horse and asked them what the matter was. When he had heard it he laughed, and said that
for his own part he should be glad of a little rest from time; that people would be born, and fall ill, and die, whether
the clock told them to or not; and with that he rode away down the hill. But the old women shook their heads. They
remembered how the clock had stopped once before, in the year of the great storm, and how in that same week three boats
had gone out in the morning and had not come back. That night the wind rose. It came up from the sea with a sound like
a great many people speaking together in another room, and the children lay awake and listened to it, and were afraid.
"""
