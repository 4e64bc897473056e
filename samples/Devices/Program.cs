using Gpu.Attention.Samples.Devices;

return new DevicesRun(Console.Out).Run() ? 0 : 1;
