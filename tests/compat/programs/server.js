// server.js PORT - node's http module: a page, a stream in chunks, an echo.
'use strict';
const http = require('http');

const server = http.createServer((request, response) => {
  if (request.url === '/page') {
    response.setHeader('Content-Type', 'text/plain');
    response.end('node says hello');
  } else if (request.url.startsWith('/chunks/')) {
    const count = Number(request.url.slice('/chunks/'.length));
    let i = 0;
    const next = () => {
      while (i < count) {
        if (!response.write(`chunk ${i++}\n`.repeat(100))) {
          response.once('drain', next);
          return;
        }
      }
      response.end();
    };
    next();
  } else {
    request.pipe(response);
  }
});
server.listen(Number(process.argv[2]), '::');
