// Sends the calls of a case of docs/conformance.json to a store, by npm's redis alone, and prints the replies as JSON.
//   node conformance.js URL TAG CASE     TAG: {environment:namespace:   CASE: JSON
const { createHash } = require("node:crypto");
const { createClient } = require("redis");

const NAMES = ["session", "expected", "known", "not_after", "token", "heir", "ids", "kinds", "body", "traceparent"];

async function main(url, tag, calls) {
  const client = await createClient({ url }).connect();
  const [store, epoch, count] = await client.hmGet(`${tag}store}:meta`, ["store", "epoch", "partitions"]);
  const replies = [];
  for (const call of calls) {
    const hash = createHash("sha1").update(call.append[0].session).digest("hex");
    const p = `${tag}${call.partition ?? parseInt(hash.slice(0, 8), 16) % Number(count)}}`;
    const keys = [`${p}:meta`, `${p}:sessions`, `${p}:feed`];
    const args = [call.store ?? store, String(call.epoch ?? epoch)];
    for (const commit of call.append) {
      keys.push(...["log", "head", "hold"].map((name) => `${p}:${name}:${commit.session}`));
      args.push(...NAMES.map((name) => commit[name] ?? (name === "expected" ? "any" : "")));
    }
    const command = ["FCALL", "muster_append_1", String(keys.length), ...keys, ...args];
    replies.push(await client.sendCommand(command).catch((error) => error.message));
  }
  client.destroy();
  console.log(JSON.stringify(replies));
}

main(process.argv[2], process.argv[3], JSON.parse(process.argv[4]));
