"""An endless, seeded supply of short stories in simple English.

Each story follows one of eleven plots. In a plot's text ``{field}`` is filled from the cast or from a word
table, and ``[this|that]`` keeps one alternative, so a name, a colour, a thing or a place that is drawn once
comes back all through the story. In a word table, ``;`` ends a row and ``/`` ends a cell. The stories train
and test the small decoder that ships with the package; telling them takes only the standard library.
"""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count

__all__ = ["generate_stories"]

_MIN_WORDS, _MAX_WORDS = 80, 200

_NAMES = {
    "girl": """Ada; Amina; Anna; Bella; Clara; Daisy; Ella; Emma; Hana; Ivy; June; Kira; Leila; Lily; Lucy;
        Maya; Mia; Molly; Nina; Nora; Olga; Penny; Priya; Rita; Ruby; Sara; Sofia; Wendy; Yuki; Zoe""",
    "boy": """Adam; Ben; Billy; Carlo; David; Ethan; Felix; Finn; George; Hugo; Ivan; Jack; Jonah; Kofi; Leo;
        Luca; Max; Milo; Nate; Noah; Omar; Oscar; Peter; Ravi; Sam; Simon; Tim; Toby; Tom; Victor""",
}
_PRONOUNS = {
    "girl": {"he": "she", "him": "her", "his": "her"},
    "boy": {"he": "he", "him": "him", "his": "his"},
}
_PLACES = """
    in / the park / under a wooden bench / behind the slide / beside the pond / near the swings;
    at / the beach / behind a big rock / under an old boat / near the sand dunes / beside a sandcastle;
    in / the garden / under a rose bush / behind the shed / among the carrots / next to the gate;
    in / the forest / under a pine tree / behind a fallen log / inside a hollow stump / by a stream;
    by / the lake / under the dock / behind the reeds / beside a rowboat / near a willow tree;
    in / the meadow / under the tall grass / near the fence / behind a haystack / beside a brook;
    in / the orchard / under an apple tree / behind a ladder / beside a pile of crates / by the old wall;
    on / the farm / inside the barn / behind the tractor / near the chicken coop / under a cart;
    at / the playground / under the seesaw / behind the sandbox / inside the tunnel / by the fountain;
    on / the hill / under a thorn bush / behind a gray stone / beside the windmill / next to a sign
"""
_COMMON = {
    "colour": "red; blue; green; yellow; purple; orange; pink; white; silver; golden; brown; black; gray",
    "trait": """kind; curious; shy; quiet; cheerful; clever; gentle; playful; funny; careful; friendly;
        helpful; lively; polite""",
    "elder": "mom; dad; grandma; grandpa",
    "size": "new; little; big; old; pretty; special; lovely",
    "item": """ball; kite; hat; scarf; whistle; marble; notebook; mitten; backpack; bracelet; teddy bear; top;
        yo-yo; ribbon; button; flashlight; umbrella; toy car""",
    "sky": "sunny; windy; cloudy; warm; cool; bright; foggy; calm; mild; breezy",
    "time": "morning; afternoon; day",
    "home": """a small house by the sea; a cozy cottage near the forest; a quiet village; a tall house on a
        hill; a busy little town; a farmhouse among the hills; an old house beside the river; a little
        apartment above a bakery; a house with a round window; a village at the foot of a mountain""",
    "food": """cookies; apple pie; cherries; sweet grapes; pancakes; banana bread; lemon cake; jam tarts;
        roasted nuts; cheese sandwiches; ripe peaches; popcorn""",
    "opening": """Once upon a time, there was a {trait} [little|young] {girl} named {name}.;
        Once upon a time, a {trait} {girl} named {name} lived in {home}.;
        {name} was a {trait} {girl} who lived in {home}.;
        There once was a {trait} {girl} called {name}. {He} lived in {home}.;
        In {home}, there lived a {trait} {girl} named {name}.;
        Long ago, in {home}, there lived a {girl} named {name}. {He} was very {trait}.""",
    "aside": """Birds sang [in the trees|above them|somewhere nearby].;
        A [white|yellow|tiny] butterfly danced past.;
        The air smelled of [grass|flowers|rain|pine].;
        Somewhere a dog barked.;
        The clouds moved slowly.;
        A [snail|beetle|ladybug] crawled along a leaf.;
        Far away, a bell rang.""",
    "closing": """That night, {name} dreamed about the {colour} {item}[| and smiled in {his} sleep].;
        {name} never forgot that {sky} {time}.;
        When {he} closed {his} eyes that night, {name} was still smiling.;
        It had been a [wonderful|very good|long but happy] day.;
        At bedtime, {name} told the whole story of the {colour} {item}.""",
}


@dataclass(frozen=True)
class _Plot:
    """A text to fill, with word tables; a table's key names the fields that one row of it fills together."""

    text: str
    tables: Mapping[str, str]


_LOST = _Plot(
    """{opening} {name} had a {size} {colour} {item} that {his} {elder} had given {him}. {He} [took it
    everywhere|loved it more than anything|carried it wherever {he} went].

    One {sky} {time}, {name} went to {place} with {his} friend {friend}. They {game} until {friend} asked,
    "Where is your {colour} {item}?" {name} looked around. The {item} was gone! {name} felt [very
    sad|worried|ready to cry]. "[Oh no, I lost it|I had it before|I must have dropped it]," {he} said.

    "[Don't worry|Don't be sad], {name}," said {friend}. "[I will help you look|We can find it together]."
    First they looked {miss}, but they found only {junk}. [{aside}|] Then {friend} looked {spot}. "[Look|Come
    here|I see it], {name}!" {friend} [called|shouted]. There was the {colour} {item}, [a little dusty but
    safe|just where it had fallen|a bit damp but fine].

    {name} hugged {friend} and said, "[Thank you for helping me|You are a true friend|I could not have found
    it alone]!" [On the way home|All the way back], {name} held the {colour} {item} tightly. [From then on,
    {he} took better care of it.|A good friend makes a hard day easier.|{He} had learned to keep {his} things
    safe.]""",
    {
        "game": """ran and jumped; played tag; picked flowers; looked for bugs; played hide and seek; sang
            songs""",
        "junk": """an old shoe; a pile of leaves; a sleepy cat; two smooth stones; a broken cup; a shy frog;
            an empty box""",
    },
)

_SHARING = _Plot(
    """{opening} For {his} birthday, {name} got a {size} {colour} {item} from {his} {elder}. [It was the best
    gift in the world.|{He} had wanted one for a long time.|{He} could not stop looking at it.]

    One {sky} {time}, {name} took the {colour} {item} to {place}. {friend} was there too. "[What a nice
    {item}|I like your {item}]! May I [have a turn|play with it]?" asked {friend}. "No, it is mine," said
    {name}, and {he} [held it close|turned away]. {friend} [looked down and walked off|sat alone {spot}|went
    away without a word]. [{aside}|]

    {name} played and played, but [it was not much fun alone|soon {he} felt lonely|something did not feel
    right]. {He} remembered what {his} {elder} always said: "[A toy is more fun with two|Joy grows when you
    share it|Sharing makes friends]." So {name} [walked|ran] over to {friend}. "I am sorry," {he} said. "Would
    you like to play with the {colour} {item} [now|with me]?"

    {friend} [smiled|jumped up|grinned] and said, "Yes, please!" They took turns with the {item} until [the
    sun went down|it was time for supper|they were both tired]. Then {friend} gave {name} some {food}.
    [Sharing had made the day much better.|Now {name} knew that sharing feels good.|After that, they shared
    everything.] [{closing}|]""",
    {
        "item": "ball; kite; drum; truck; robot; scooter; train; boat; wagon; puzzle; tent; hoop; guitar",
    },
)

_FEAR = _Plot(
    """{opening} {name} liked [many things|to draw and read|games and stories], but {he} was afraid of {fear}.
    [Just the thought|Even the word] made {him} [shiver|want to hide|feel cold].

    One {sky} {time}, {his} {elder} gave {him} a small {colour} {item}. "[Hold this|Keep this in your
    pocket|Squeeze this] when you feel afraid," said {his} {elder}. "Being brave means [trying even when you
    are scared|taking one small step|doing it with a shaky heart]." {name} put the {colour} {item} in {his}
    pocket.

    The next day, {moment}. {name}'s heart [went boom, boom, boom|beat fast|jumped]. {His} friend {friend}
    whispered, "[You can do it|I am right here|I believe in you], {name}." {name} reached into {his} pocket
    and felt the {item}. {He} took a deep breath. Then {he} {deed}. {result}

    "[I did it|I was brave|It was not so bad]!" said {name}. {friend} [clapped and cheered|gave {name} a big
    hug|laughed with joy]. At home, {name} showed the {colour} {item} to {his} {elder} and [told the whole
    story|said, "It worked!"|said, "I am not so afraid now."] [Being brave gets easier each time.|{name} was
    very proud.|That was the day {name} learned to be brave.]""",
    {
        "item": "stone; button; ribbon; shell; marble; feather; acorn; coin; bead",
        "fear moment deed result": """the dark / all the lights went out / walked slowly down the dark hall /
              It was only the same old hall with the lights off.;
            thunder / a loud storm rolled over the roof / went to the window to watch the flashes / The storm
              was only noise, and soon it moved away.;
            deep water / the children went swimming in the lake / stepped in and kicked with both feet / The
              water held {him} up like a soft bed.;
            big dogs / a big dog trotted up to them / held out one hand and let the dog sniff it / The dog
              wagged its tail and licked {his} fingers.;
            high places / it was {his} turn to go down the tall slide / climbed up one step at a time / Down
              {he} went, and the wind tickled {his} face.;
            singing in front of people / the teacher asked {him} to sing a song / stood up and began to sing /
              Everyone listened, and at the end they all clapped.;
            spiders / a spider was sitting on the door / went closer and looked at its tiny legs / The spider
              was busy making a web as fine as lace.;
            riding a horse / a brown pony was waiting at the farm / climbed into the saddle / The pony walked
              slowly, and {he} began to laugh.""",
    },
)

_ANIMAL = _Plot(
    """{opening} {name} loved [all animals, big and small|every animal {he} met|furry and feathered friends].

    One {sky} {time}, {name} was walking {at} {place} with {his} {elder}. [{aside}|] [Suddenly|Then|All at
    once], {he} heard a [soft|sad|tiny] cry. {Spot}, there was a little {animal}. The {animal} {trouble}.
    "[Oh, you poor thing|Don't be afraid, little one|We have to help it]," said {name}. "What can we do?"

    "[We must be gentle|Move slowly|Let us be very quiet]," said {his} {elder}. {name} took off {his} {colour}
    {item} and [wrapped it around|laid it over] the {animal} to keep it warm. Then they {fix}. The {animal}
    looked at {name} with [bright|round|shiny] eyes. [{name} stayed until it stopped shaking.|{name} waited
    and spoke in a soft voice.|{name} gave it a little water to drink.]

    The next day, {name} came back to {place}. There was the {animal}, [strong and happy|playing in the
    sun|looking much better]. It [remembered the {colour} {item} and came close|came right up to {name}|made a
    happy sound]. "[Hello, my friend|I am so glad you are well|You look happy today]!" said {name}. [Small
    acts of kindness can mean a lot.|Even a child can help someone in need.|From that day on, the {animal} was
    {name}'s friend.]""",
    {
        "item": "scarf; sweater; jacket; coat; vest",
        "animal trouble fix": """bird / had fallen out of its nest / lifted it carefully back into the nest;
            rabbit / had a thorn in its paw / pulled the thorn out and washed the paw;
            kitten / was wet and shaking / found a dry box for it and filled the box with straw;
            duckling / had lost its mother / carried it to the water, where its mother was calling;
            hedgehog / was caught in an old net / cut the net, one string at a time;
            squirrel / was cold and hungry / put down some nuts and a dish of water;
            puppy / was lost and had no home / gave it some food and found it a warm place to sleep;
            fox cub / had fallen into a muddy hole / lifted it out and dried its fur;
            lamb / had its foot stuck under a log / lifted the log together until the foot was free;
            owl / had hurt its wing / tied the wing gently and let the owl rest in a basket""",
    },
)

_MENDED = _Plot(
    """{opening} {His} {elder} had a {size} {colour} {item} that [everyone in the family loved|was very dear
    to the family|had been in the house for years]. {name} [liked it too|thought it was the best {item} of
    all|played near it every day].

    One {sky} {time}, {name} and {friend} were playing with the {colour} {item}. [Crack|Snap|Oh no]! {Damage}.
    {name} [gasped|covered {his} mouth|felt terrible]. "[Should we hide it|Can we just run away|Do we have to
    tell]?" asked {friend}. "[We broke it, so we should help to fix it|It is best to tell the truth]," said
    {name}.

    They went to {his} {elder}. "[I am sorry|It was an accident]," said {name}. "We broke the {colour}
    {item}." {His} {elder} was quiet for a moment and then smiled. "[Thank you for telling me|Most broken
    things can be mended]. Let us fix it together." {name} held the pieces while {friend} [brought the
    tools|found the glue|fetched the toolbox]. They {fix}. [It took all afternoon.|It was slow work.|They
    worked until supper.]

    At last, the {item} {works}. "[It is as good as new|We did it|Look at that]!" said {friend}. {His} {elder}
    gave them both some {food}. {name} looked at the {colour} {item} and felt [proud|happy|warm inside]. [It
    is better to mend a thing than to hide it.|Telling the truth was the right thing to do.|With care and
    time, many things can be made whole.]""",
    {
        "item damage fix works": """kite / its tail tore on a branch / sewed on a new tail / flew higher than
              ever;
            wagon / one wheel fell off / put the wheel back and made it tight / rolled along again;
            chair / one leg came loose / glued the leg and tied it with string / stood straight and strong;
            music box / the lid broke off / put on a new lid with tiny screws / played its sweet song again;
            clock / the hands stopped moving / cleaned each little wheel inside / went tick, tock again;
            teapot / the handle broke off / stuck the handle back with strong glue / could pour tea again;
            birdhouse / the roof split in two / nailed on a new roof / was ready for the birds;
            lamp / the shade ripped down the side / patched the shade with bright paper / glowed again;
            boat / a small hole opened in its side / covered the hole with wax / floated across the pond;
            drum / the skin on top split / stretched a new skin over the top / went rum, tum, tum again""",
    },
)

_WEATHER = _Plot(
    """{opening} All week, {name} and {friend} had planned to {plan} {at} {place}. {name} had even packed a
    {size} {colour} {item} [for the trip|the night before|and put it by the door].

    But when the day came, {storm}. {name} looked out of the window and [sighed|frowned|felt sad]. "Now we
    cannot {plan}," {he} said. {His} {elder} came in and asked, "[Why the long faces|What is wrong, you
    two|Who says the day is over]?"

    "[Well|I see|Hmm]," said {his} {elder}, "we cannot change the weather, but we can change the plan. What is
    in that {colour} {item}?" {name} opened the {item}. Inside were {contents} and some {food}. "I have an
    idea!" said {friend}. They {indoor}. They ate the {food} and [laughed|sang|told jokes] until [it got
    dark|their sides hurt|bedtime].

    "[This was even better than our plan|I am glad the weather changed|What a good day]," said {name}. "Next
    time, we will {plan} {at} {place}," said {friend}, "and we will bring the {colour} {item} again." [A
    change of plan can be a gift.|Sometimes the best days are the ones you did not plan.|Fun can be found in
    any weather.] [{closing}|]""",
    {
        "item": "bag; basket; box; backpack; suitcase",
        "plan": "have a picnic; fly a kite; play ball; look for birds; paint pictures; ride bikes",
        "storm": """rain was pouring down; thick snow covered the ground; a strong wind shook the trees; hail
            bounced off the roof; a dark storm filled the sky; the fog was as thick as milk""",
        "contents indoor": """crayons, paper, / drew the whole plan on one long sheet of paper;
            two puppets, a mask, / put on a puppet show behind the couch;
            a blanket, a rope, / built a tent in the middle of the room;
            a map, a rope, / went on a treasure hunt from room to room;
            a book, a candle, / took turns reading a story about pirates;
            paper, a ball of string, / made paper birds and hung them from the ceiling""",
    },
)

_PROMISE = _Plot(
    """{opening} {His} best friend was {friend}, who had a {size} {colour} {item}. One {sky} {time}, {friend}
    had to go away for [a week|a few days|three days]. "Will you {care} while I am gone?" asked {friend}. "I
    will do it every day," said {name}. "I promise."

    The first day was easy. {name} went to {friend}'s house and [did just what {he} had said|kept the
    promise|did the job with care]. But on the second day, {tempt}. {name} [really wanted to go|wanted to join
    in|thought about it for a long time]. [{aside}|]

    {name} thought of {friend} and the {colour} {item}. "[No, I made a promise|{friend} is counting on me|A
    promise is a promise]," {he} said. {He} [hurried|ran|walked] to {friend}'s house to {care2}. {Luck}

    When {friend} came home, the {colour} {item} [was just fine|was doing well|looked better than ever]. "You
    kept your promise!" said {friend}. "[Thank you|I knew I could trust you], {name}." {friend} gave {name}
    some {food} from the trip. [A promise kept is a gift to a friend.|It felt good to be trusted.|{name} knew
    that keeping a promise is worth it.] [{closing}|]""",
    {
        "item care care2": """fish / feed my {colour} fish / feed the fish;
            bird / give my {colour} bird water / give the bird fresh water;
            parrot / talk to my {colour} parrot / talk to the parrot;
            flower / water my {colour} flower / water the flower;
            rose bush / water my {colour} rose bush / water the rose bush;
            snail / find leaves for my {colour} snail / bring the snail some leaves;
            hen / feed my {colour} hen / give the hen some corn;
            pony / brush my {colour} pony / brush the pony""",
        "tempt": """a circus came to town; all the children went to {place}; there was a big game in the
            street; the ice cream truck stopped at the corner; a parade marched down the road""",
        "luck": """Then {he} ran back as fast as {he} could and still had time to play.; By then, everyone
            else had gone home, but {name} did not mind.; And when {he} came back, the fun was not over
            yet.""",
    },
)

_SKILL = _Plot(
    """{opening} {name} wanted to learn how to {skill}. {His} friend {friend} could already do it very well,
    and {name} [liked to watch|wished to be just as good|wanted to try too].

    One {sky} {time}, {his} {elder} gave {name} a {size} {colour} {item}. "Now you can learn," said {his}
    {elder}. {name} took the {colour} {item} to {place} and tried at once. {Fail}. {He} tried again, and [it
    went wrong again|the same thing happened|it was no better]. "[I will never learn|This is too hard|I give
    up]!" {he} cried.

    {friend} [came over|sat down beside {name}|heard this and smiled]. "[It took me a long time too|Nobody can
    do it the first time|I was just like you once]," said {friend}. "{hint}." So {name} tried [once
    more|again, slowly|with {friend} close by]. {He} [practiced|worked at it] every day that week. [On Monday
    it was hard. By Friday it was easier.|Each day it went a little better.|Little by little, it got easier.]

    Then, one {time2}, {name} picked up the {colour} {item} and {success}. "[You did it|Look at you|I knew you
    could], {name}!" shouted {friend}. {name} [laughed out loud|beamed|jumped for joy]. [Practice makes hard
    things easy.|{name} was glad that {he} had not given up.|Learning takes time, and that is all right.]
    [{closing}|]""",
    {
        "time2": "fine morning; golden evening; quiet afternoon; Saturday",
        "skill item fail hint success": """fly a kite / kite / it dipped and crashed into a bush / Run into
              the wind and let the string out slowly / sent it high up among the clouds;
            play the drum / drum / the beat came out all wrong / Count to four and keep your hands loose /
              played a steady beat from start to end;
            play the flute / flute / it made only a loud squeak / Blow softly, as if you were cooling soup /
              played a song as sweet as a bird's;
            jump rope / rope / it got tangled around one foot / Listen for the tap of the rope and then jump /
              jumped one hundred times without stopping;
            throw a ball into a basket / ball / it bounced off a tree / Bend your knees and look at the basket
              / threw it straight into the basket;
            paint a picture / brush / the paint ran down the page / Use less water and wait for it to dry /
              painted a tree with a hundred leaves;
            spin a top / top / it wobbled and fell over / Hold it straight and pull the string hard / made it
              spin until everyone had counted to fifty;
            use a yo-yo / yo-yo / it went down and did not come back up / Give it a small pull just before it
              stops / made it climb up the string again and again;
            throw a hoop / hoop / it rolled away down the hill / Keep it flat and turn your wrist / threw it
              over a post five times in a row""",
    },
)

_GUESS = _Plot(
    """{opening} One {night}, {name} was [in bed|reading in bed|almost asleep] with {his} {colour} {item} when
    {he} heard {sound}. It came from {where}. {name} sat up. "It must be {guess}!" {he} thought. {He} pulled
    the blanket up to {his} chin.

    {friend} was staying for the night. "Did you hear that?" whispered {name}. "I think it is {guess}."
    {friend} listened. "[I hear it too|You may be right|Oh dear]," said {friend}. "[Should we hide?|What if it
    comes in here?|Let us go and look.]" They [held hands and|took a flashlight and|slowly] went to {where}.
    {name} held the {colour} {item} out in front like a [shield|sword].

    The sound [grew louder|came again|stopped and then began again]. {name} [counted to three|took a deep
    breath|stepped closer] and looked. It was not {guess} at all! It was {truth}. They [laughed|giggled] so
    much that {his} {elder} came to see what was the matter.

    "We thought it was {guess}," said {name}, "but it was only {truth2}." "[Things look bigger in the dark|A
    first guess is often wrong|It is wise to look before you worry]," said {his} {elder}, [and tucked them
    both in|with a wink|with a yawn]. {name} put the {colour} {item} back on the bed. [Next time, {name} would
    look first and guess later.|After that, strange sounds did not seem so bad.|Soon both of them were fast
    asleep.]""",
    {
        "item": "pillow; teddy bear; toy boat; book; toy rabbit; slipper; doll",
        "night": "windy night; dark night; rainy night; cold night; quiet night; moonlit night",
        "where": "the kitchen; the hall; the attic; the cellar; the back door; the bathroom",
        "guess": "a monster; a ghost; a bear; a dragon; a thief; a giant; a wolf",
        "sound truth truth2": """a soft scratching sound / a little mouse with a piece of cheese / a mouse;
            a slow tapping sound / a branch that tapped on the glass / a branch;
            a low humming sound / the old refrigerator / the refrigerator;
            a long howl / the wind in the pipe / the wind;
            a loud bump / the cat, who had knocked over a pot / the cat;
            a deep rumble / the dog, who was snoring on a rug / the dog;
            a strange drip, drip, drip / a leaky pipe / a leaky pipe;
            a quick flapping sound / a moth inside a paper bag / a moth""",
    },
)

_GIFT = _Plot(
    """{opening} It was almost {his} {elder}'s birthday, and {name} wanted to give {his} {elder} a {colour}
    {item}. But {he} had [no money|only two small coins|an empty piggy bank].

    {name} told {his} friend {friend}. "[You can earn some|We could work for it|I know what to do]," said
    {friend}. So, one {sky} {time}, the two of them went to {place} and {work}. [It was hard work|Their arms
    grew tired|They worked until noon], but {name} thought of the {colour} {item} and [kept going|did not
    stop|smiled]. [{aside}|] In the end, they had {coins} coins in a jar.

    At the shop, there was only one {colour} {item} left. "It costs {coins} coins," said the woman in the
    shop. {name} counted the coins twice. [It was just enough.|There was not one coin too many.] {friend}
    helped {him} wrap the {item} in [soft paper|newspaper|a clean cloth] and tie it with string.

    On the birthday, {his} {elder} opened the gift and saw the {colour} {item}. "[How did you get this|Where
    did you find this|How could you buy such a lovely thing]?" The answer came fast. "{friend} and I worked
    for it," said {name}. {His} {elder} [hugged {him} tightly|had happy tears|could not stop smiling]. [A gift
    you work for is the best gift of all.|Love was the best part of the gift.|They all ate some {food}
    together.]""",
    {
        "item": "scarf; cup; vase; hat; pen; lamp; shawl; plate; teapot; picture frame",
        "work": """picked up cans and bottles; sold lemonade; swept the path; carried bags for people; washed
            carts and bikes; pulled weeds; sold painted stones; helped to paint a fence""",
        "coins": "five; six; seven; nine; ten; twelve; fifteen; twenty",
    },
)

_SEED = _Plot(
    """{opening} One {sky} {time}, {his} {elder} gave {him} a tiny seed. "Plant it in this {colour} {item},"
    said {his} {elder}, "and one day it will grow into {plant}." {name} filled the {colour} {item} with
    [dark|soft|rich] soil and pushed the seed in with one finger.

    The next morning, {name} ran to look. There was nothing but soil. {He} looked the next day, and the next.
    Still nothing! "[The seed is asleep|It will never grow|Maybe it is a bad seed]," {he} told {friend}. "[Let
    us dig it up and see|Give it some time|Seeds are slow]," said {friend}. {name} [asked {his} {elder} what
    to do|did not know what to do|sat down and thought].

    "[Wait and be patient|Good things take time|A seed needs water, sun, and patience]," said {his} {elder}.
    So every day {name} {tend}. {friend} came to [help|watch|sing to it]. {Days} passed. [{aside}|] Then, one
    morning, a small green tip came up in the {colour} {item}. "[It is alive|It is growing|Look, look]!"
    shouted {name}.

    By [summer|the end of spring|the next holiday], the seed had become {plant}. {friend}
    [clapped|danced|cheered], and {name} [thanked {his} {elder}|gave {his} {elder} a hug]. They [kept the
    {colour} {item} by the window|put the {colour} {item} where all could see it]. [Good things come to those
    who wait.|{name} had learned to be patient.|From a tiny seed, a great joy had grown.]""",
    {
        "item": "pot; bucket; cup; box; bowl; can",
        "plant": """a tall sunflower; a sweet strawberry plant; a little apple tree; a big tomato plant; a
            bean plant as tall as a door; a bunch of bright daisies; an orange pumpkin""",
        "tend": """gave it a little water; turned it toward the sun; pulled out the weeds; told it a short
            story""",
        "days": "Ten days; Two weeks; Many days; Three weeks; Twelve days",
    },
)

_PLOTS = (_LOST, _SHARING, _FEAR, _ANIMAL, _MENDED, _WEATHER, _PROMISE, _SKILL, _GUESS, _GIFT, _SEED)
_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@cache
def _rows(table: str) -> list[list[str]]:
    """Split a word table into rows of cells."""
    return [[cell.strip() for cell in row.split("/")] for row in table.split(";") if row.strip()]


def _cast(rng: random.Random) -> dict[str, str]:
    """Draw the hero with pronouns, the friend, and the place with two spots in it."""
    girl, other = rng.choice(("girl", "boy")), rng.choice(("girl", "boy"))
    [name] = rng.choice(_rows(_NAMES[girl]))
    [friend] = rng.choice([row for row in _rows(_NAMES[other]) if row != [name]])
    at, place, *spots = rng.choice(_rows(_PLACES))
    spot, miss = rng.sample(spots, 2)
    cast = {
        "girl": girl,
        "name": name,
        "friend": friend,
        "at": at,
        "place": place,
        "spot": spot,
        "miss": miss,
    }
    return cast | _PRONOUNS[girl]


def _tell(plot: _Plot, rng: random.Random) -> str:
    """Fill one plot: draw every field, then resolve choices and fields until none is left."""
    fields = _cast(rng)
    for keys, table in {**_COMMON, **plot.tables}.items():
        fields |= zip(keys.split(), rng.choice(_rows(table)), strict=True)
    fields |= {key.capitalize(): value[0].upper() + value[1:] for key, value in fields.items()}
    text = plot.text
    while "[" in text or "{" in text:
        text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text).format_map(fields)
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", "\n\n".join(paragraphs))


def generate_stories(seed: int = 0) -> Iterator[str]:
    """Yield stories without end; the story at an index depends on nothing but ``seed`` and that index.

    Args:
        seed: Any integer. Different seeds tell different stories.

    Yields:
        A story of 80 to 200 words in two to four paragraphs, with a blank line between paragraphs.
    """
    for index in count():
        rng = random.Random(f"{seed}:{index}")
        story = ""
        while not _MIN_WORDS <= len(story.split()) <= _MAX_WORDS:
            story = _tell(rng.choice(_PLOTS), rng)
        yield story
