// A client of the wire contract, made of the protos alone: node client.js PROTO_FOLDER HOST:PORT
// Prints one JSON object with what it saw; test_node.py says what that must be.
"use strict";

const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [folder, address] = process.argv.slice(2);
const files = ["admin", "collections", "points", "search"].map((name) => path.join(folder, "vecdb", "v1", `${name}.proto`));
const loaded = loader.loadSync(files, { includeDirs: [folder], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true });
const { vecdb } = grpc.loadPackageDefinition(loaded);
const open = (Service) => new Service(address, grpc.credentials.createInsecure(), { "grpc.max_receive_message_length": -1 });
const [admin, collections, points, search] = [vecdb.v1.Admin, vecdb.v1.Collections, vecdb.v1.Points, vecdb.v1.Search].map(open);

const deadline = () => ({ deadline: Date.now() + 30000 });

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, new grpc.Metadata(), deadline(), (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

function all(stream) {
  return new Promise((resolve, reject) => {
    const seen = [];
    stream.on("data", (reply) => seen.push(reply));
    stream.on("error", reject);
    stream.on("end", () => resolve(seen));
  });
}

// Little-endian, whatever the machine.
function packed(numbers) {
  const data = Buffer.alloc(4 * numbers.length);
  numbers.forEach((number, at) => data.writeFloatLE(number, 4 * at));
  return data;
}

const target = { collection: "docs" };
const json = (value) => Buffer.from(JSON.stringify(value));
const numbers = (hits) => hits.map((hit) => hit.id.number);

async function main() {
  const seen = {};
  seen.hello = await call(admin, "Hello", {});
  const created = await call(collections, "Create", {
    name: "docs",
    fields: [{ name: "vector", dense: { dim: 3, metric: "METRIC_L2" } }],
    token: Buffer.from("node-create"),
  });
  seen.created = { name: created.name, uuid: created.uuid.length };

  // Points one by one, floats as they are; twice, with one token.
  const write = {
    target,
    points: [1, 2].map((n) => ({ id: { number: n }, vectors: { "": { values: [n, 0, 0] } }, payload: json({ n, kind: "floats" }) })),
    token: Buffer.from("node-upsert"),
  };
  seen.upserted = [await call(points, "Upsert", write), await call(points, "Upsert", write)].map((reply) => [reply.applied, reply.replaced]);

  // By columns, packed.
  const columns = {
    ids: { numbers: [3, 4, 5] },
    vectors: { vector: { dtype: "DTYPE_F32", dim: 3, data: packed([3, 0, 0, 4, 0, 0, 5, 0, 0]) } },
    payloads: [3, 4, 5].map((n) => json({ n, kind: "packed" })),
  };
  seen.packed = (await call(points, "Upsert", { target, columns })).applied;

  // A stream of writes.
  seen.streamed = await new Promise((resolve, reject) => {
    const stream = points.UpsertStream(new grpc.Metadata(), deadline(), (error, reply) => (error ? reject(error) : resolve(reply.applied)));
    for (let n = 6; n < 106; n += 10) {
      const ids = Array.from({ length: 10 }, (_, i) => n + i);
      stream.write({
        target,
        columns: { ids: { numbers: ids }, vectors: { vector: { dim: 3, data: packed(ids.flatMap((id) => [id, 0, 0])) } }, payloads: ids.map((id) => json({ n: id, kind: "streamed" })) },
        token: Buffer.from(`node-stream-${n}`),
        quiet: true,
      });
    }
    stream.end();
  });

  const found = await call(search, "Search", { target, query: { values: [3.2, 0, 0] }, k: 3, options: { with_vectors: { all: true } } });
  seen.search = found.hits.map((hit) => [hit.id.number, hit.score, JSON.parse(hit.payload), hit.vectors.vector.data.readFloatLE(0)]);

  const batch = await call(search, "SearchBatch", { target, queries: { dim: 3, data: packed([1, 0, 0, 105, 0, 0]) }, k: 2 });
  seen.batch = { ids: batch.ids.numbers, lengths: batch.lengths, first: batch.scores.readFloatLE(0) };

  const where = { and: { parts: [{ compare: { path: "n", op: "OP_GT", value: { integer: 50 } } }, { not: { in: { path: "n", values: [{ integer: 51 }] } } }] } };
  const query = { target, query: { values: [0, 0, 0] }, k: 2 };
  seen.filtered = [
    numbers((await call(search, "Search", { ...query, options: { where } })).hits),
    numbers((await call(search, "Search", { ...query, options: { where: { expression: "n > 50 and not n in (51)" } } })).hits),
  ];
  seen.count = (await call(points, "Count", { target, where: { expression: "kind == 'packed'" } })).count;
  const got = await call(points, "Get", { target, ids: { numbers: [5, 999] }, with_vectors: { fields: ["vector"] } });
  seen.got = { ids: got.points.map((point) => point.id.number), missing: got.missing };

  const pages = await all(points.Scroll({ target }, new grpc.Metadata(), deadline()));
  seen.scrolled = pages.flatMap((page) => page.points.map((point) => point.id.number));

  // Queries as they come; one of them is wrong.
  const both = search.SearchStream(new grpc.Metadata(), deadline());
  const replies = all(both);
  for (const values of [[9, 0, 0], [1, 2], [10, 0, 0]]) both.write({ target, query: { values }, k: 1 });
  both.end();
  seen.both = (await replies).map((each) => (each.error ? each.error.type : numbers(each.reply.hits)));

  try {
    await call(search, "Search", { target, query: { values: [1, 2] }, k: 1 });
  } catch (error) {
    const Kind = loaded["vecdb.v1.Error"];
    const data = error.metadata.get("vecdb-error-bin")[0];
    const decoded = require("protobufjs").loadSync(path.join(folder, "vecdb", "v1", "values.proto")).lookupType("vecdb.v1.Error").decode(data);
    seen.error = { code: grpc.status[error.code], known: Boolean(Kind), type: decoded.type, attributes: JSON.parse(decoded.attributes), request: decoded.requestId.length > 0 };
  }
  try {
    await call(collections, "Get", { target: { collection: "nothing" } });
  } catch (error) {
    seen.missing = grpc.status[error.code];
  }
  console.log(JSON.stringify(seen));
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
