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
// The program is completed in front of this text: the sizes, TOKENS, LANES, where a row of `latents` and `up` is and how
// it is read (`latentsPlace`, `latentsAt`, `upPlace`, `upAt`), and where keys and values go (`writeKey`, `writeValue`), in
// textures or buffers. `//@` lines are for `unroll`, as in `attend.wgsl`.

struct Task {
  rows: u32,
  heads: u32,
}

@group(0) @binding(0) var<uniform> task: Task;
const CHUNK = 32u;

@compute @workgroup_size(LANES)
fn expand(@builtin(global_invocation_id) at: vec3u) {
  let first = at.x * TOKENS;
  let ofValue = at.y >= QUADS;
  let quad = at.y - select(0u, QUADS, ofValue);
  let made = quad < select(NOPE, VALUE, ofValue);
  let row = (at.z * (NOPE + VALUE) + select(0u, NOPE, ofValue) + quad) * 4u;

  // Tokens beyond the end are shadows of the last one, which are never written.
  //@ for $t < TOKENS
  let token$t = latentsPlace(min(first + $tu, task.rows - 1u));
  var all$t = vec4f(0.0);
  //@ end
  if (made) {
    let row0 = upPlace(row);
    let row1 = upPlace(row + 1u);
    let row2 = upPlace(row + 2u);
    let row3 = upPlace(row + 3u);
    for (var chunk = 0u; chunk < RANK; chunk += CHUNK) {
      //@ for $t < TOKENS
      var sum$t = vec4f(0.0);
      //@ end
      for (var r = chunk; r < min(chunk + CHUNK, RANK); r++) {
        let m0 = upAt(row0, r);
        let m1 = upAt(row1, r);
        let m2 = upAt(row2, r);
        let m3 = upAt(row3, r);
        //@ for $t < TOKENS
        let x$t = latentsAt(token$t, r);
        sum$t += vec4f(dot(m0, x$t), dot(m1, x$t), dot(m2, x$t), dot(m3, x$t));
        //@ end
      }
      //@ for $t < TOKENS
      all$t += sum$t;
      //@ end
    }
  } else if (!ofValue) {
    //@ for $t < TOKENS
    all$t = latentsAt(token$t, RANK + quad - NOPE);
    //@ end
  }
  //@ for $t < TOKENS
  if (first + $tu < task.rows) {
    let head = (first + $tu) * task.heads + at.z;
    if (ofValue) { writeValue(head, quad, all$t); } else { writeKey(head, quad, all$t); }
  }
  //@ end
}
