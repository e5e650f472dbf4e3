// A device of tuf-js: refreshes, downloads, and says what it trusts then.
//
// tufjs_client.js STATE ROOT METADATA_URL TARGETS_URL TARGET...
//
// STATE is a directory that outlives the call. Prints {"timestamp": VERSION, "files": {TARGET: FILE}}. Exit code 1 when
// the client refuses, with the reason. tuf-js is found through NODE_PATH.
'use strict';

const fs = require('fs');
const path = require('path');
const { Updater } = require('tuf-js');

async function main([state, root, metadataBaseUrl, targetBaseUrl, ...targets]) {
  const metadataDir = path.join(state, 'metadata');
  const targetDir = path.join(state, 'targets');
  for (const dir of [metadataDir, targetDir]) fs.mkdirSync(dir, { recursive: true });
  const trusted = path.join(metadataDir, 'root.json');
  if (!fs.existsSync(trusted)) fs.copyFileSync(root, trusted);
  const updater = new Updater({
    metadataDir,
    metadataBaseUrl,
    targetDir,
    targetBaseUrl,
    config: { fetchRetries: 0 },
  });
  await updater.refresh();
  const files = {};
  for (const target of targets) {
    const info = await updater.getTargetInfo(target);
    if (!info) throw new Error(`no role has ${target}`);
    files[target] = (await updater.findCachedTarget(info)) || (await updater.downloadTarget(info));
  }
  const timestamp = JSON.parse(fs.readFileSync(path.join(metadataDir, 'timestamp.json'), 'utf8'));
  console.log(JSON.stringify({ timestamp: timestamp.signed.version, files }));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`${error.name}: ${error.message}`);
  process.exit(1);
});
