// Makes the keys and values of a block of latents, of all heads, where attention reads them.
//
// | grid         | x: TOKENS · LANES tokens    y: four components of a key, then of a value    z: head  |
// | latents      | [rows, WIDTH]: RANK that keys and values are made of, then the keys' rope part       |
// | up           | [heads, 4 · (NOPE + VALUE), RANK]: the rows that make a key, then those of a value   |
// | keys, values | [rows, heads, QUADS], bindings 3 and 4; a value's components from VALUE on are 0     |
//
// RANK, WIDTH, NOPE, VALUE and QUADS count fours of components, and `rows` tokens of all batch entries. An invocation
// makes the same four components for TOKENS tokens: what it reads of `up` serves them all, and all of a workgroup read the
// same of it at the same time. Sums of CHUNK products are added to each other, so that no sum has many terms.
//
// The program is completed in front of this text: the sizes, LANES, how a latent is stored (`Stored`, `load`) and where
// keys and values go (`writeKey`, `writeValue`).

struct Task {
  rows: u32,
  heads: u32,
}

@group(0) @binding(0) var<uniform> task: Task;
@group(0) @binding(1) var<storage, read> latents: array<Stored>;
@group(0) @binding(2) var<storage, read> up: array<vec4f>;

const TOKENS = 4u;
const CHUNK = 32u;

@compute @workgroup_size(LANES)
fn expand(@builtin(global_invocation_id) at: vec3u) {
  let first = at.x * TOKENS;
  let ofValue = at.y >= QUADS;
  let quad = at.y - select(0u, QUADS, ofValue);
  let made = quad < select(NOPE, VALUE, ofValue);
  let row = (at.z * (NOPE + VALUE) + select(0u, NOPE, ofValue) + quad) * 4u * RANK;

  // Tokens beyond the end are shadows of the last one, which are never written.
  var token: array<u32, TOKENS>;
  for (var t = 0u; t < TOKENS; t++) { token[t] = min(first + t, task.rows - 1u) * WIDTH; }
  var all = array<vec4f, TOKENS>();
  if (made) {
    for (var chunk = 0u; chunk < RANK; chunk += CHUNK) {
      // Written out: wgpu does not make it zero again in every turn, as the standard says.
      var sums = array<vec4f, TOKENS>();
      for (var r = chunk; r < min(chunk + CHUNK, RANK); r++) {
        let a = up[row + r];
        let b = up[row + RANK + r];
        let c = up[row + 2u * RANK + r];
        let d = up[row + 3u * RANK + r];
        for (var t = 0u; t < TOKENS; t++) {
          let x = load(latents[token[t] + r]);
          sums[t] += vec4f(dot(a, x), dot(b, x), dot(c, x), dot(d, x));
        }
      }
      for (var t = 0u; t < TOKENS; t++) { all[t] += sums[t]; }
    }
  } else if (!ofValue) {
    for (var t = 0u; t < TOKENS; t++) { all[t] = load(latents[token[t] + RANK + quad - NOPE]); }
  }
  for (var t = 0u; t < TOKENS; t++) {
    if (first + t >= task.rows) { break; }
    let head = (first + t) * task.heads + at.z;
    if (ofValue) { writeValue(head, quad, all[t]); } else { writeKey(head, quad, all[t]); }
  }
}
