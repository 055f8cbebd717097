/**
 * Word lists: common English words, one sense each, no word in two lists. Nouns form their plural with a plain "s".
 *
 * @module
 */

/** Adjectives. */
export const ADJECTIVES: readonly string[] = `
active alert amber ancient angry aware awake basic bitter black blind blue bold brave brief bright brisk broad broken
brown busy calm careful cheap cheerful chief clean clear clever close cloudy coarse cold common complex cool correct
curious curly daily damp dark deaf deep dense dirty distant double dry dull dusty eager early easy empty equal exact
extra fair false famous fancy fast final fine firm foggy formal forward free fresh full funny future gentle giant glad
golden good grand great green grim happy healthy heavy hidden high holy honest huge hungry jolly kind large late lazy
level little lively local lonely long loose loud lovely low loyal lucky major mild minor misty modern modest mute
narrow native near neat new nice noble noisy normal odd open orange pale patient perfect plain pleasant polite poor
private proper proud public pure purple quick quiet random rapid rare ready real red regular remote rich rough round
royal rude rural rustic sad safe salty scarce secret sharp shiny short shy silent silly simple single slim slow small
smart smooth soft solid sour special spicy steady steep strange strong sturdy sunny sweet swift tall tame thick thin
tidy tight tiny tired tough true urban usual vast vivid warm weak wealthy wet white wide wild windy wise wooden young
`.trim().split(/\s+/);

/** Nouns. */
export const NOUNS: readonly string[] = `
acorn airport album anchor angle animal ankle apple apron arrow artist badge bag baker ball balloon banana banker barn
barrel basin basket battle beacon bean bear bed bell belt bicycle bird blanket blossom boat bone book boot border
bottle boulder bowl bridge broom brother bucket builder bull butter button cabin cable camel camera canal candle
captain carpet carrot castle cave center chain chair chapel chapter chicken circle citizen clock cloud clover coat
collar corner cottage cousin crab crow crown cup curtain cushion desert desk diamond dinner doctor dolphin donkey door
dragon drawer drum duck eagle ear egg engine engineer farmer feather fern field finger fisher flag flame flower flute
forest fountain garden gate glacier glove goat goose grape guitar hall hammer harbor hat hedge hill horn horse hotel
hunter island jacket jewel jungle kettle key king kitchen kitten ladder lake lamp lantern lawyer leader lemon letter
lion lizard lobster market meadow medal melon mirror monkey mountain museum needle neighbor nest number ocean olive
onion otter oven owl owner palace paper parent parrot partner path pearl pen pencil pepper pillow pilot pirate planet
plate player prince printer prison pumpkin rabbit reader ribbon rider ring river robot rocket room rope rose sailor
seed shell shirt shoe shop shoulder shovel sister snake soldier spider spoon star stone stove student suit swan table
tailor target teacher temple ticket tiger tower train tree tunnel valley village waiter wall well whale wheel whistle
window wing wizard worker writer yard zebra
`.trim().split(/\s+/);

/** Verbs in the base form; all can take an object. */
export const VERBS: readonly string[] = `
admire adopt advise answer arrange attach bake balance boil borrow bounce bring brush build burn bury buy call carry
carve catch change charge chase check choose clap climb collect compare consider control copy count cover crack cross
cut damage decide defend describe detect discover divide draw drink drive drop earn eat enjoy enter examine expect
explain explore feed fetch fill find fix fold follow forget gather give grab greet grow guard guess guide handle hear
heat help hide hire hit hold hunt identify imagine improve inform invent invite join judge keep know lead learn leave
lend lift like list load love make manage mark match measure meet melt mention miss mix move name notice observe offer
order own pack paint park pass pick plant play polish pour praise prefer prepare present print produce promise protect
prove pull pump push question race raise reach read receive recognize record reduce remember remove repair repeat
replace report respect return review rinse save scatter scrape search see sell send separate serve shake share show
sing sketch sort spot spray spread steer stir stitch stop store stretch study supply support surprise surround take
taste teach tell test thank throw tie touch trade treat try turn twist understand unlock unpack use value visit wait
want wash waste watch water welcome wonder write
`.trim().split(/\s+/);
