// cluster.js PORT - node's cluster module: two workers share a listener; /pid tells which one, /N answers N bytes.
'use strict';
const cluster = require('cluster');
const http = require('http');

if (cluster.isPrimary) {
  cluster.fork();
  cluster.fork();
  process.on('SIGTERM', () => { cluster.disconnect(() => process.exit(0)); });
} else {
  http.createServer((request, response) => {
    if (request.url === '/pid') {
      response.setHeader('Connection', 'close');
      response.end(String(process.pid));
    } else {
      response.end('0123456789abcdef'.repeat(Number(request.url.slice(1)) / 16));
    }
  }).listen(Number(process.argv[2]), '0.0.0.0');
}
