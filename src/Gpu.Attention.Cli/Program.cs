using Gpu.Attention.Cli;

return Application.Run(args, Console.Out, Console.Error, terminationTimeout: TimeSpan.FromSeconds(2));
