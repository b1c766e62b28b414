import { Context, Effect, Layer } from "effect";
import { natsLinks } from "./plugins/nats_links.ts";
import { Links } from "./runtime/link.ts";
import { natsMembers } from "./tests/support/nats.ts";
import { faultyLines, type Faults } from "./tests/support/faulty_lines.ts";
import { createHash } from "node:crypto";
const frameBytes = 512*1024, total = Number(Deno.args[0] ?? 256);
const frames = total*2;
const pool = new Uint8Array(8*1024*1024); for (let i=0;i<pool.length;i+=65536) crypto.getRandomValues(pool.subarray(i,i+65536));
const frameAt = (i:number)=> pool.subarray((i*4099)%(pool.length-frameBytes), (i*4099)%(pool.length-frameBytes)+frameBytes);
const bare = Effect.scoped(Effect.gen(function*(){
  const { members } = yield* natsMembers(2);
  const [a,b]=members; let got=0; const done=Promise.withResolvers<void>();
  b!.bulk.subscribe("x",(bytes)=>{ got++; if(got===frames) done.resolve(); });
  yield* Effect.promise(()=>b!.bulk.flush());
  const t=performance.now();
  yield* Effect.promise(async()=>{ for(let i=0;i<frames;i++){ a!.bulk.publish("x",frameAt(i)); while(i-got>=8) await a!.bulk.flush(); } await done.promise; });
  return total/((performance.now()-t)/1000);
}));
const linked = (faults: Faults, seed: number) => Effect.scoped(Effect.gen(function*(){
  const { members } = yield* natsMembers(2);
  const [a,b] = yield* Effect.forEach(members, (m,i)=> Effect.map(Layer.build(natsLinks(faultyLines(m,faults,seed+i),{cluster:"test"})),(c)=>Context.get(c,Links)));
  const [near,far]=yield* Effect.all([a!.open({run:"r",self:0,peer:1}),b!.open({run:"r",self:1,peer:0})],{concurrency:"unbounded"});
  const h1=createHash("md5"), h2=createHash("md5");
  let stall=0,last=performance.now();
  const t=performance.now();
  yield* Effect.all([
    Effect.forEach(Array.from({length:frames},(_, i)=>i),(i)=>near.send(frameAt(i)),{discard:true}),
    Effect.forEach(Array.from({length:frames},(_, i)=>i),(i)=>Effect.map(far.receive,(f)=>{const n=performance.now();stall=Math.max(stall,n-last);last=n; const w=frameAt(i); if (f.length!==w.length||f[0]!==w[0]||f[f.length-1]!==w[w.length-1]||f[1000]!==w[1000]) throw new Error("differs "+i);}),{discard:true}),
  ],{concurrency:"unbounded"});
  const s=(performance.now()-t)/1000;
  return {mib: total/s, stall, near:a!.counts(), far:b!.counts()};
}));
for (let r=0;r<3;r++){
console.log("bare", await Effect.runPromise(bare));
console.log("clean", await Effect.runPromise(linked({},1)));
console.log("1/5/5/1", await Effect.runPromise(linked({loss:.01,duplicate:.05,reorder:.05,corrupt:.01},r+2)));
console.log("10/10/20/5", await Effect.runPromise(linked({loss:.1,duplicate:.1,reorder:.2,corrupt:.05},r+3)));
}
